"""The test suites, and the images they run."""
