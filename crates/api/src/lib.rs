//! Public REST types, OpenAPI document, typed client.
