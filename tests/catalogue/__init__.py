"""The tool that compares the catalogue with registries; for maintainers."""
