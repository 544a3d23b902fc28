"""Tests on a real engine and real containers."""
