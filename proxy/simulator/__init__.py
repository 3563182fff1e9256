"""A Bedrock runtime over real sockets that counts for itself and keeps its own bill.

Nothing here imports the proxy: the simulator is the other party, and an account kept by two parties
proves something only while they share no arithmetic.
"""
