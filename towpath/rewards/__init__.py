"""Where rewards come from, and how they make one number."""
