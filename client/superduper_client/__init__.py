"""The same facade over HTTP, without torch."""
