"""Measurements, with the settings of a run's own process."""

from towpath.progress import prepare_libraries

prepare_libraries()
