"""A shop: pages, a login, a cart."""

from flask import Flask

from shop import database, keys, views


def create_app(config=None):
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="configured", DATABASE="shop.sqlite", UPLOADS="uploads")
    app.config.from_mapping(config or {})
    app.config["SECRET_KEY"] = keys.secret_key(app)
    database.init_app(app)
    app.register_blueprint(views.pages)
    return app
