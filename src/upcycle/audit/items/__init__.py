"""The items of the audit, as data."""
