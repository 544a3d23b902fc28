"""Stands for an ipykernel whose dependencies are gone."""

raise ImportError("this ipykernel is broken on purpose")
