"""Tests without Docker and without a network, in seconds."""
