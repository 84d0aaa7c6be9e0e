"""The only code that knows a driver. Backends run statements and know no table."""
