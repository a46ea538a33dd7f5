"""Django's ORM through the proxy. Arguments: port, sslmode, database. Prints its version; any failure is an exception.
Never talks to a server in another way."""
import sys

import django
from django.conf import settings

PORT, SSLMODE, DATABASE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
settings.configure(
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": DATABASE, "USER": "app", "PASSWORD": "app-secret",
        "HOST": "127.0.0.1", "PORT": PORT, "OPTIONS": {"sslmode": SSLMODE},
    }},
    INSTALLED_APPS=[], USE_TZ=True, TIME_ZONE="Europe/Paris", DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from django.db import IntegrityError, connection, models, transaction  # noqa: E402
from django.db.models import Count  # noqa: E402
from django.utils import timezone  # noqa: E402


class Author(models.Model):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "drivers"
        db_table = "django_author"


class Book(models.Model):
    title = models.CharField(max_length=50, unique=True)
    author = models.ForeignKey(Author, models.CASCADE)
    data = models.JSONField(default=dict)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "drivers"
        db_table = "django_book"


with connection.cursor() as cur:
    cur.execute("DROP TABLE IF EXISTS django_book, django_author")
with connection.schema_editor() as editor:
    editor.create_model(Author)
    editor.create_model(Book)
author = Author.objects.create(name="A")
Book.objects.bulk_create([Book(title=f"t{i}", author=author, data={"n": i}) for i in range(50)])
assert Book.objects.filter(data__n__gte=40).count() == 10
assert Book.objects.values("author__name").annotate(n=Count("id")).get() == {"author__name": "A", "n": 50}
with transaction.atomic():
    try:
        with transaction.atomic():
            Book.objects.create(title="t1", author=author)
        raise SystemExit("no error")
    except IntegrityError:
        pass
    locked = Author.objects.select_for_update().get()
    locked.name = "B"
    locked.save()
assert Author.objects.get().name == "B"
try:
    with transaction.atomic():
        author.delete()
        raise KeyError("ours")
except KeyError:
    pass
assert Book.objects.count() == 50
# Outside of a transaction a server-side cursor is WITH HOLD.
assert len(list(Book.objects.iterator(chunk_size=7))) == 50
with transaction.atomic():
    assert len(list(Book.objects.iterator(chunk_size=7))) == 50
assert Book.objects.first().at.tzinfo is not None
with connection.cursor() as cur:
    cur.execute("SHOW timezone")
    assert cur.fetchone() == ("UTC",)
# Many connections, one after the other, as requests make them.
for _ in range(10):
    connection.close()
    assert Book.objects.count() == 50
with connection.schema_editor() as editor:
    editor.delete_model(Book)
    editor.delete_model(Author)
print(django.get_version())
