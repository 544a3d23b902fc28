"""The images that the tests run: real old frameworks, and images that lack this or that."""
