"""The tests of mirrorproxy; `make test` runs them all."""
