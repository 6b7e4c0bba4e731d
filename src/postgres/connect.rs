//! Stub.
use super::failure::Failure;
use super::options::PostgresOptions;
pub(super) type Driver = tokio_postgres::Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>;
pub(super) async fn connect(options: &PostgresOptions) -> Result<(tokio_postgres::Client, Driver), Failure> {
    let r = tokio::time::timeout(std::time::Duration::from_secs(5), tokio_postgres::connect(&options.url, tokio_postgres::NoTls)).await;
    match r {
        Ok(Ok(x)) => Ok(x),
        Ok(Err(e)) => Err(Failure::Connect(super::problem::of_driver(&e))),
        Err(_) => Err(Failure::no_server()),
    }
}
