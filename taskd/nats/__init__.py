"""NATS JetStream: how events leave the machine. Needs nats-py (``taskd[nats]``)."""
