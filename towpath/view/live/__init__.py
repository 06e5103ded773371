"""The live monitor's data: charts, headline numbers and marks of a run while it is written."""
