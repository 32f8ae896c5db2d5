"""How a warm pod comes to serve a TokenService: used by services and pools alike."""
