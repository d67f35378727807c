"""Tests of mirrorproxy.cache."""
