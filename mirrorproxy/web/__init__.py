"""The HTTP side: requests become typed routes, a `Registry` answers them, one place writes what goes out.

server   connections, and what does not even parse
app      one handler for everything: parse, answer, and keep the books
routes   a request's target, parsed; pure
v2       the registry protocol (and the few pages beside it)
stream   the one place that writes a response; `pump` its fast way for files
errors   the one table from what went wrong to HTTP
access   the access log; `probes` the health pages and metrics
"""
