"""How a run is read and drawn for its report."""
