"""python -m components: the command line and runs on this machine.

Imports recipe and generated; nothing imports it but __main__.
"""
