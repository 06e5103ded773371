"""Nodes of a Ray cluster on this machine, in a process of their own: `python tests/ray_nodes.py`, then lines `add` and
`remove` on standard input. Ray is imported there alone, with its threads and warnings."""

import subprocess
import sys
from contextlib import AbstractContextManager


class RayNodes(AbstractContextManager["RayNodes"]):
    """A head without CPUs and nodes of one CPU each."""

    def __init__(self, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def change(self, what: str) -> None:
        """`add` or `remove` a node; a removed one is killed."""
        assert self.process.stdin
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self._line() == "done"

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def main() -> None:
    """Serve until standard input ends."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[1]))]
    cluster.wait_for_nodes()
    sys.stdout.write(cluster.address + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        sys.stdout.write("done\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
