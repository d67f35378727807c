"""What an operator sees and steers: the operations behind the commands, whoever runs them.

    events       what an operation says while it runs
    desk         what an operation works on
    operations   all of them by name, and how one is carried out
    place        the socket in the cache directory

An operation is an async generator of events over a `Desk`. The service runs it for a command that asks through the
socket; where no service runs, the command runs it by itself. No HTTP here.
"""
