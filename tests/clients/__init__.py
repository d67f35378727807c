"""Real clients pull real images through mirrorproxy from a real registry, where nothing but loopback exists."""
