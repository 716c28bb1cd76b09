"""The studio's back end: what its pages ask beyond the OpenAI API, and the pages themselves."""
