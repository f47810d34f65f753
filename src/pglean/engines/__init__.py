"""The other engines: what the server can do by itself, with what it lacks: bounds, reports, and nothing left behind."""
