"""`metastore demo`: real workers in several processes on a real git repository.

It is built on the example runner, `docs/examples/runner.py`; what is here starts runners in
processes of their own, kills one of them, and checks the database against the answers they got.
"""
