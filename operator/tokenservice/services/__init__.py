"""TokenService: what is (snapshot), what should be (render, plan), and the controller that closes the gap."""
