"""SQLAlchemy through the proxy, over psycopg2 and asyncpg. Arguments: port, sslmode, database. Prints its version; any failure is
an exception. Never talks to a server in another way."""
import asyncio
import sys

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, declarative_base, relationship, selectinload

PORT, SSLMODE, DATABASE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
TARGET = f"app:app-secret@127.0.0.1:{PORT}/{DATABASE}"
Base = declarative_base()


class Author(Base):
    __tablename__ = "sqlalchemy_author"
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String, nullable=False)
    books = relationship("Book", back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "sqlalchemy_book"
    id = sa.Column(sa.Integer, primary_key=True)
    title = sa.Column(sa.String, nullable=False, unique=True)
    tags = sa.Column(ARRAY(sa.String))
    author_id = sa.Column(sa.ForeignKey("sqlalchemy_author.id"))
    author = relationship("Author", back_populates="books")


def synchronous():
    engine = sa.create_engine(f"postgresql+psycopg2://{TARGET}?sslmode={SSLMODE}", pool_size=3, pool_pre_ping=True)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    assert sa.inspect(engine).has_table("sqlalchemy_book")
    with Session(engine) as session:
        author = Author(name="A", books=[Book(title=f"t{i}", tags=["x", str(i)]) for i in range(50)])
        session.add(author)
        session.commit()
        assert session.query(Book).filter(Book.tags.contains(["7"])).one().title == "t7"
        with session.begin_nested() as savepoint:
            session.add(Book(title="gone"))
            session.flush()
            savepoint.rollback()
        try:
            with session.begin_nested():
                session.add(Book(title="t1"))
                session.flush()
            raise SystemExit("no error")
        except sa.exc.IntegrityError:
            pass
        assert session.query(Book).count() == 50
        locked = session.query(Author).with_for_update().one()
        locked.name = "B"
        session.commit()
    with Session(engine) as session:
        author = session.query(Author).options(selectinload(Author.books)).one()
        assert author.name == "B" and len(author.books) == 50
        rows = session.execute(sa.select(Book.title).execution_options(stream_results=True, yield_per=7))
        assert len(rows.all()) == 50
        session.delete(author)
        session.commit()
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    with serializable.connect() as conn:
        assert conn.scalar(sa.text("SHOW transaction_isolation")) == "serializable"
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SHOW transaction_isolation")) == "read committed"
    Base.metadata.drop_all(engine)
    engine.dispose()


async def asynchronous():
    engine = create_async_engine(f"postgresql+asyncpg://{TARGET}", connect_args={"ssl": SSLMODE}, pool_size=3)
    async def one(n):
        for i in range(10):
            async with engine.connect() as conn:
                assert (await conn.execute(sa.text("SELECT CAST(:n AS int)"), {"n": n * 100 + i})).scalar() == n * 100 + i
    await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(6))), 60)
    await engine.dispose()


synchronous()
asyncio.run(asynchronous())
print(sa.__version__)
