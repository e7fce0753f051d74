"""Generated from protos/greatseal/v1 by `make proto`; never edited by hand."""
