"""How clients come in: the sockets that listen, how many connections there may be, the certificate.

A process that only answers clients knows nothing of configuration files: so what is here does not either.
"""
