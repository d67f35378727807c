"""What every implementation of a contract has to show, written once."""
