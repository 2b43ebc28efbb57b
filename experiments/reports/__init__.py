"""Tables and charts made from the result.json of finished runs."""
