"""The HTTP surface: OpenAI's API over the models that are loaded (https://platform.openai.com/docs/api-reference).

    request ─► guard ─► schemas ─► chat | completions | embeddings ─► engine
                                           │
    client  ◄── whole answer, or server-sent events ◄── events
"""
