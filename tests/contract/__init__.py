"""What every engine must do, the fake one included."""
