"""Tests of mirrorproxy.fill."""
