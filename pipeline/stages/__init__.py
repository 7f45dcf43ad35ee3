"""The work of prepare, evaluate and publish. It does not know about stores or owners."""
