"""The HTTP surface: OpenAI's API (https://platform.openai.com/docs/api-reference) over the loaded models.

request ─► guard ─► schemas ─► chat | completions | embeddings ─► engine
                                       │
client  ◄── whole answer, or server-sent events ◄── events
"""
