"""Several processes that answer clients, and one that does everything else.

    worker     a `web.App` over `Remote`, which is a `Registry`; its own connections, answers given again, access log
    core       the registries, the cache, downloads, the index, eviction, metrics, commands: one of each

The registries' one contract (`mirrorproxy.registry`) is the seam: what a worker cannot say by itself it asks the core,
over a pair of sockets (`line`). Content comes as the descriptor of its file, so its bytes go from the page cache to the
client past the core. A worker is started anew when it dies; with it break its clients' connections, and nothing else.
When the core dies, its workers end: there is no service without it.
"""
