"""A run while it goes on: its files read as they grow, and what there is to see in them."""
