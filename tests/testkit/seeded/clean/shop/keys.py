def secret_key(app):
    return app.config["SECRET_KEY"]
