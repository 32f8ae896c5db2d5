"""The pod of a token_server, whoever it belongs to: its template, and what users may change of it."""
