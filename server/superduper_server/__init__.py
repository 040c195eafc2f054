"""The server: one implementation of every command over HTTP."""
