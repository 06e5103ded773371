"""File and line of each record, in a few bytes each."""

from towpath.data.refused_rows import Part

_LINE_BITS = 40


class Locations:
    """File and line of records by part and id."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._numbers: dict[str, int] = {}
        """Position of each file."""
        self._codes: dict[str, dict[str, int]] = {}
        """File and line as one integer, by part and id."""

    def code(self, file: str, line: int) -> int:
        """A file and line as one integer."""
        if file not in self._numbers:
            self._numbers[file] = len(self._files)
            self._files.append(file)
        return self._numbers[file] << _LINE_BITS | line

    def text(self, code: int) -> str:
        """The file and line of a code."""
        return f"{self.file(code)}:{code & (1 << _LINE_BITS) - 1}"

    def file(self, code: int) -> str:
        """The file of a code."""
        return self._files[code >> _LINE_BITS]

    def add(self, part: Part, name: str, code: int) -> None:
        """Set the file and line of a record."""
        self._codes.setdefault(part, {})[name] = code

    def code_of(self, part: Part, name: str) -> int | None:
        """The code of a record, or None."""
        return self._codes.get(part, {}).get(name)

    def get(self, part: Part, name: str) -> str:
        """File and line of a record as `file:line`; its id and line 0 if it is not known."""
        code = self.code_of(part, name)
        return f"{name}:0" if code is None else self.text(code)

    def file_of(self, part: Part, name: str) -> str:
        """The file of a record; empty if it is not known."""
        code = self.code_of(part, name)
        return "" if code is None else self.file(code)
