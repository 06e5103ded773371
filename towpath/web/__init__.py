"""Pages in the browser: people rate, owners look and set. Nothing here starts a job."""
