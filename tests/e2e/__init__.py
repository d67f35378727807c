"""The real process in front of a scripted upstream: what was counted there is what is asserted."""
