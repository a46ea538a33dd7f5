//! What docs/drivers.md shows of tokio-postgres, compiled and run: the block there is a part of this file, word for word.

use tokio_postgres::NoTls;

/// Connects, writes in a transaction, and reads from the primary.
pub async fn application(target: &str) -> Result<i32, tokio_postgres::Error> {
    let (mut client, connection) = tokio_postgres::connect(target, NoTls).await?;
    tokio::spawn(connection);

    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO accounts VALUES ($1, $2)", &[&6, &100]).await?;
    transaction.commit().await?; // the server connection goes back to the pool here

    let sql = "SELECT /* helios:route=primary */ balance FROM accounts WHERE id = $1";
    Ok(client.query_one(sql, &[&6]).await?.get(0))
}

/// The same for a test without a runtime.
pub fn run(target: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(runtime.block_on(application(target)).unwrap(), 100);
}
