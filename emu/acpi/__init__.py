"""ACPI: the tables that tell a guest what board it runs on, and the AML in them."""
