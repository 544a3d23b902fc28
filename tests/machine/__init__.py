"""What the tests need on the machine itself: Debian packages and a Docker engine."""
