"""Web pages: people rate, owners review and configure. Nothing here starts a stage."""
