"""One route's words in another's, for models that Bedrock serves under other words only.

A translated call is one attempt: its body is bounded, limited, stamped and sent as what it became, its
usage is what Bedrock reports there, and its answer and errors are told in the words of the client's
route. What cannot be said in the other words is refused, never dropped in silence, unless it is a
label or a hint (`IGNORED` in each module).
"""
