"""Length predictions over HTTP, for routers, schedulers and people; no engine is needed.

lengths     what a LenVM says of the states that end sequences of token ids
asked       what a client may ask, and which tokens it means
batching    concurrent requests in one forward pass, from a bounded queue
predictor   POST /predict, /predict/bulk: an app
hints       a prediction in the words of vLLM, production-stack, Dynamo, llm-d
proxy       an app in front of OpenAI-compatible servers that fills these hints
remaining   the remaining length, said between the events of a stream
run         either app on a port, with a graceful stop
"""
